"""The cleaning of rows: the rules, the fixes of single texts, and the checks of whole rows."""
