#!/bin/sh
# After the files of the package are removed. "apt purge" deletes the journal, too; the
# user stays, since files of the user may exist elsewhere.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
if [ "${1:-}" = purge ]; then
	rm -rf /var/lib/autobatcher
fi
