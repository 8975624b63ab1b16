#compdef kubectl-idtoken
# zsh completion of kubectl-idtoken.
_kubectl_idtoken() {
  local -a lines candidates
  local line directive
  lines=("${(@f)$(kubectl-idtoken __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  directive=${lines[-1]}
  for line in "${(@)lines[1,-2]}"; do
    line=${line//:/\\:}
    candidates+=("${line/$'\t'/:}")
  done
  if (( $#candidates )); then
    _describe 'kubectl-idtoken' candidates
  elif [[ $directive == ':0' ]]; then
    _files
  fi
}
if [[ $funcstack[1] == _kubectl_idtoken ]]; then
  _kubectl_idtoken "$@"
else
  compdef _kubectl_idtoken kubectl-idtoken
fi
