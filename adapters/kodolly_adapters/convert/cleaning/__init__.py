"""The cleaning of rows: rules, fixes of texts, and judgements of whole rows."""
