"""What survives a restart: bases, variants, jobs, their events and measurements, in one SQLite file."""
