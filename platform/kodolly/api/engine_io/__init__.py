"""How engines are asked, and how their silence is noticed."""
