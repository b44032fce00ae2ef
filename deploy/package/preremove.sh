#!/bin/sh
# Before the files of the package are removed. dpkg calls the script with "remove" or
# "upgrade", rpm with the number of versions that remain.
set -e
case "${1:-}" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now autobatcher.service
	fi
	;;
esac
