"""For the API reference: the help text and the default of every field of a config, as mkdocstrings shows them.

A field is declared as `option("Help.", default)`; griffe reads sources and would show that call.
"""

import dataclasses
import importlib
from typing import Any

import griffe


class OptionHelp(griffe.Extension):
    """Sets docstring and value of the fields."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe when it has read a class."""
        if not cls.module.path.startswith("repa_pipe.config."):
            return
        kind = getattr(importlib.import_module(cls.module.path), cls.name)
        for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            if "help" in field.metadata:
                if field.name not in cls.members:  # inherited
                    cls.set_member(field.name, griffe.Attribute(field.name, annotation=field.type))
                member = cls.members[field.name]
                member.docstring = griffe.Docstring(field.metadata["help"], parent=member)
                member.value = None if field.default is dataclasses.MISSING else repr(field.default)
