"""A reward function, as a user has one."""


def letters(prompts, completions, **columns):
    return [len(text) % 7 / 7 for text in completions]
