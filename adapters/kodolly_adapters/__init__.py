"""The making side of KoDolly: converts data sets to rows, tunes a base model on them, merges the result."""
