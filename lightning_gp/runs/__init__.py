"""What experiments and commands share: command lines, folders of results, trainings, summaries over seeds."""
