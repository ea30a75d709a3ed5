"""Text of strangers, for a person's terminal."""

from tasks.plain_text import first_line, plain


def test_control_characters_go_and_line_ends_stay() -> None:
    assert plain("\x1b]0;x\x07a\tb\nc\x00\x9b") == "]0;xa\tb\nc"


def test_of_a_long_text_the_first_line_is_left_cut_between_words() -> None:
    assert first_line("\n boot failed: no disk \nTraceback") == "boot failed: no disk"
    assert first_line("word " * 100, 20) == "word word word\u2026"
    assert first_line("w" * 100, 20) == "w" * 19 + "\u2026" and first_line("") == ""
