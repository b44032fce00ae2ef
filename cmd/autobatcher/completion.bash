# Completion of autobatcher for bash, version 3 or later. No other package is needed.

_autobatcher() {
	# bash separates --flag=value at the equals sign; autobatcher reads one word.
	local words=() word last i
	for ((i = 0; i <= COMP_CWORD; i++)); do
		word=${COMP_WORDS[i]}
		last=$((${#words[@]} - 1))
		if ((last > 0)) && [[ ${words[last]} == --*= || ($word == = && ${words[last]} == --*) ]]; then
			words[last]+=$word
		else
			words+=("$word")
		fi
	done
	last=$((${#words[@]} - 1))
	local current=${words[last]} prefix=
	[[ $current == --*=* && $COMP_WORDBREAKS == *=* ]] && prefix=${current%%=*}=
	[[ $current == -* ]] || unset "words[last]"

	COMPREPLY=()
	local line token
	while IFS= read -r line; do
		token=${line%%:*}
		[[ $token == "$current"* ]] || continue
		# 63: bash lists the words, and does not insert a word.
		if [[ ${COMP_TYPE:-} == 63 && $line == *:* ]]; then
			printf -v token '%-30s %s' "$token" "${line#*:}"
		fi
		COMPREPLY+=("${token#"$prefix"}")
	done < <("${words[0]/#\~/$HOME}" "${words[@]:1}" --generate-shell-completion 2>/dev/null)
}

complete -o bashdefault -o default -F _autobatcher autobatcher
