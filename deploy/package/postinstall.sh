#!/bin/sh
# After the files of the package are installed. The service is neither enabled nor
# started, since it needs a key; a service that runs is restarted after an update.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart autobatcher.service
fi
