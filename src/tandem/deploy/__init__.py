"""Files for running a service under another's care: systemd's and Compose's. Pure: settings in, text out."""
