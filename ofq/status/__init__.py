"""What has become of a study: looks at run folders and logs, and shows them; changes nothing."""
