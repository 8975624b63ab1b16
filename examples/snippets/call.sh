#!/bin/sh
# Calls a service every second. The header goes to curl by a pipe, so that the token is in no command line.
while true; do
  printf 'Authorization: Bearer %s' "$(cat /var/run/idtoken/token)" |
    curl --fail --silent --show-error --header @- https://billing-x.run.app/prices
  sleep 1
done
