#!/bin/sh
# Before the files of the package are installed: the system user of the service.
set -e
if ! getent passwd autobatcher >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/autobatcher --no-create-home \
		--shell /usr/sbin/nologin --comment 'autobatcher serve' autobatcher
fi
