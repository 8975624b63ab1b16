# bash completion of kubectl-idtoken.
_kubectl_idtoken() {
  local word line before= count=0 glue= words=()
  COMPREPLY=()
  # bash ends words at "=".
  for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
    if [[ $word == "=" && $count -gt 0 ]]; then
      words[count - 1]="${words[count - 1]}="
      glue=1
    elif [[ -n $glue ]]; then
      words[count - 1]="${words[count - 1]}$word"
      glue=
    else
      words[count]=$word
      count=$((count + 1))
    fi
  done
  if [[ $COMP_WORDBREAKS == *"="* && $count -gt 0 && ${words[count - 1]} == --*=* ]]; then
    before="${words[count - 1]%%=*}="
  fi
  while IFS= read -r line; do
    case $line in
      :0) compopt -o default 2>/dev/null ;;
      :*) ;;
      *)
        line=${line%%$'\t'*}
        COMPREPLY[${#COMPREPLY[@]}]=${line#"$before"}
        ;;
    esac
  done < <(kubectl-idtoken __complete "${words[@]}" 2>/dev/null)
}
complete -F _kubectl_idtoken kubectl-idtoken
