"""Studies in an Optuna storage: a projection of their logs, for optuna-dashboard and whatever else reads one."""
