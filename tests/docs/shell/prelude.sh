# Runs before the blocks of a page. What clouds and registries are called with is written to $CALLS; nothing of theirs is called.
set -euo pipefail
trap 'status=$?; [ "$status" = 0 ] || echo "this block failed: $BLOCK" >&2; jobs=$(jobs -p); [ -z "$jobs" ] || kill $jobs 2>/dev/null || true' EXIT

# In one write: the programs of a pipe call at the same time.
call() {
  local call
  printf -v call '%s\x1f' "$BLOCK" "$@"
  printf '%s\x1e' "$call" >>"$CALLS"
}

# Answers that the commands behind them can work with.
gcloud() {
  call gcloud "$@"
  case "$*" in
    "auth application-default login")
      mkdir -p "$HOME/.config/gcloud"
      echo '{"type": "authorized_user"}' >"$HOME/.config/gcloud/application_default_credentials.json" ;;
    "config get-value "*) echo me@example.com ;;
    "projects describe "*) echo 123456789012 ;;
    *get-iam-policy*) echo '{"bindings": []}' ;;
    "run services describe "*) echo https://billing-x.run.app ;;
    "iam service-accounts describe "*) echo 100000000000000000001 ;;
  esac
}
aws() { call aws "$@" && echo https://oidc.eks.example.com/id/1; }
az() { call az "$@" && echo https://oidc.aks.example.com/1/; }
sudo() { "$@"; }
