"""What tests build: surveys, catalogues, models, files, servers, faults, oracles."""
