#compdef autobatcher
# Completion of autobatcher for zsh, version 5 or later.

_autobatcher() {
	local -a request=("${(@Q)words[1,CURRENT-1]}") found
	local current=${(Q)PREFIX} line
	[[ $current == -* ]] && request+=("$current")
	for line in "${(@f)$("${request[1]/#\~\//$HOME/}" "${(@)request[2,-1]}" --generate-shell-completion 2>/dev/null)}"; do
		[[ -n $line && ${line%%:*} == "$current"* ]] && found+=("$line")
	done
	if (( $#found )); then
		_describe 'autobatcher' found
		return
	fi
	compset -P '--[^=]#=' # a path, perhaps as the value of --flag=
	_files
}

# The file may be sourced, or be in a folder of fpath.
if [[ $funcstack[1] == _autobatcher ]]; then
	_autobatcher "$@"
else
	compdef _autobatcher autobatcher
fi
