"""The subcommands of ``lightning-gp``; each module's ``main(words)`` runs one."""
