"""Read and check the config: schema, conditions, data sets, methods, stages. No torch here: a config is checked in a second."""
