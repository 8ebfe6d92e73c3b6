"""Ways in for container engines that do not start ``nydusd``: one folder an engine's protocol."""
