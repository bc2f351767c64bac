"""One run, safely: from its config to its finished folder."""
