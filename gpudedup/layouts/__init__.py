"""A study beside the manager: three ways to keep the books of page sharing, and what each costs."""
