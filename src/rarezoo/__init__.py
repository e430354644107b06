"""Find rare galaxy classes in the representations of models trained on Galaxy Zoo votes."""
