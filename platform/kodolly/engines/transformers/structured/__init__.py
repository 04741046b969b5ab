"""Answers in a form that the client names: JSON, a schema, an expression, a grammar.

`constraint` reads the form from a request, `compiler` makes a grammar of it on a thread of its own,
`matcher` says for one answer which tokens may come next. llguidance does the work.
"""
