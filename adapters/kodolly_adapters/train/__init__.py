"""`kodolly train`: a recipe and Dolly rows in, a tuned model or adapter out, on TRL and PEFT."""
