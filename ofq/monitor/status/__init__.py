"""What has become of a study: statuses at run folders and logs, and shows them; changes nothing."""
