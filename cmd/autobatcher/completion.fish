# Completion of autobatcher for fish, version 3 or later.

# prints the possible words, each with a description after a tab; else the paths
function __autobatcher_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l request $words[2..-1]
    string match -q -- '-*' $current; and set -a request $current
    set -l found
    set -l program (string replace -r '^~/' "$HOME/" -- $words[1])
    for line in ($program $request --generate-shell-completion 2>/dev/null)
        set -l parts (string split -m 1 : -- $line)
        if test (string sub -l (string length -- $current) -- $parts[1]) = "$current"
            set -a found (string join \t -- $parts)
        end
    end
    if set -q found[1]
        printf '%s\n' $found
        return
    end
    # a path, perhaps as the value of --flag=
    set -l flag (string match -r -- '^--[^=]*=' $current)
    set -l path (string replace -- "$flag" '' $current)
    for line in (__fish_complete_path $path)
        printf '%s%s\n' "$flag" $line
    end
end

complete -c autobatcher -e
complete -c autobatcher -f -a '(__autobatcher_complete)'
