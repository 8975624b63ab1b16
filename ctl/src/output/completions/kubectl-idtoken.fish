# fish completion of kubectl-idtoken.
function __kubectl_idtoken_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l lines (kubectl-idtoken __complete $words[2..-1] 2>/dev/null)
    if test "$lines[-1]" = ':0'
        __fish_complete_path (commandline -ct)
    end
    string match --invert --regex '^:[0-9]+$' -- $lines
end
complete -c kubectl-idtoken --no-files --arguments '(__kubectl_idtoken_complete)'
