# Follows the prelude where nothing is run at all: each program that bash does not have itself is noted and succeeds.
PATH=/nonexistent
command_not_found_handle() { call "$@"; }
unset -f gcloud aws az
kill() { :; }
# A program that is not run does not read what is written to it.
set +o pipefail
# What docs/releasing.md has its reader download.
: >SHA256SUMS
