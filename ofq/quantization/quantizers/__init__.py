"""Weight quantizers: StatsQ, LSQ, and variants of both."""
