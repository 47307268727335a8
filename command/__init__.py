"""The command line of a person: edit and generate here or on a server, look at models and jobs."""
