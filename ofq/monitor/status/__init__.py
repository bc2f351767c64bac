"""Status of a study: reads run folders and logs, and shows their state; changes nothing."""
