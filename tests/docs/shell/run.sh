# Follows the prelude where blocks are run. CI runs the tasks of the project by themselves, and a kubelet's logs need a kubelet.
cargo() {
  if [ "$1 $2 ${3-}" != "run -p idtoken-emulator" ]; then
    call cargo "$@"
  elif [ "${!#}" = --help ]; then
    idtoken-emulator --help
  else
    shift 4
    idtoken-emulator "$@" &
    local address=${!#}
    curl -sf --retry 60 --retry-connrefused --retry-delay 1 "http://$address/_emulator/healthz"
  fi
}
kubectl() { if [ "$1" = logs ]; then call kubectl "$@"; else command kubectl "$@"; fi; }
helm() { if [ "$1" = diff ]; then call helm "$@"; else command helm "$@"; fi; }
