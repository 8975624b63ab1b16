#!/bin/sh
# kubectl's own completion runs kubectl_complete-idtoken for the words behind "kubectl idtoken".
exec kubectl-idtoken __complete "$@"
