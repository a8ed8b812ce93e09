"""From MODULE[:APP] on the command line to the app; what keeps it from being imported is told in the user's lines."""

import importlib
import importlib.util
import keyword
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from flowkit.app import App
from flowkit.cli.outcome import described, own_directories, shown_path, user_frames
from flowkit.errors import ConfigError


def load_app(target: str) -> App:
    """The app that `target` names: `pkg.mod`, `dir/app.py`, either with `:APP`, with nothing wrong in its declarations.

    Raises ConfigError if there is no such module, if it cannot be imported, if it is not clear which app is meant, or
    with all that is wrong in it.
    """
    app = find_app(target)
    if problems := problems_of(app):
        raise ConfigError(*problems)
    return app


def problems_of(app: App, *, rekey: bool = False) -> list[str]:
    """What is wrong with the app's declarations, with file and line of the agent where a problem names one.

    With `rekey` also what only workers cannot do.
    """
    try:
        app.plan(rekey=rekey)
    except ConfigError as error:
        return [_located(problem, app) for problem in error.problems]
    return []


def _located(problem: str, app: App) -> str:
    named = re.match(r"agent '([^']+)'", problem)
    agent = app.agents.get(named[1]) if named else None
    code = getattr(agent.function, "__code__", None) if agent is not None else None
    return problem if code is None else f"{shown_path(code.co_filename)}:{code.co_firstlineno}: {problem}"


def find_app(target: str) -> App:
    """The app that `target` names, whether or not its declarations fit together. Raises ConfigError."""
    place, _, name = target.rpartition(":") if _names_app(target) else (target, "", "")
    module = _import(place)
    own_directories.add(str(Path(module.__file__ or "").resolve().parent) + os.sep)
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    shown = shown_path(module.__file__ or place)
    if name:
        if name in apps:
            return apps[name]
        if hasattr(module, name):
            raise ConfigError(f"{shown}: {name} is a {type(getattr(module, name)).__name__}, not a flowkit.App")
        raise ConfigError(f"{shown}: there is no {name} in it (its apps: {', '.join(apps) or 'none'})")
    different = {id(app): (key, app) for key, app in reversed(apps.items())}
    if len(different) == 1:
        ((_, app),) = different.values()
        return app
    if not different:
        raise ConfigError(f'{shown}: there is no flowkit.App in it; write: app = flowkit.App("my-app")')
    names = sorted(key for key, _ in different.values())
    raise ConfigError(f"{shown}: there are {len(names)} apps in it ({', '.join(names)}); say which: {place}:{names[0]}")


def _names_app(target: str) -> bool:
    """True if what follows the last colon is a name (a colon may also stand in a path)."""
    head, colon, name = target.rpartition(":")
    return bool(colon and head and name.isidentifier() and not keyword.iskeyword(name))


def _import(place: str) -> ModuleType:
    if not place:
        raise ConfigError("no MODULE is named: give pkg.mod or a path such as app.py")
    # As with `python -m`: what lies here can be imported, also where a console script has set no path.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if place.endswith(".py") or os.sep in place:
            return _import_file(place)
        return _import_name(place)
    except (KeyboardInterrupt, ConfigError) as error:
        if isinstance(error, ConfigError) and user_frames(error):
            raise _refused(place, error) from error
        raise
    except BaseException as error:
        raise _refused(place, error) from error


def _import_file(place: str) -> ModuleType:
    path = Path(place)
    if path.is_dir():
        raise ConfigError(f"{place}: is a directory; name the file in it, such as {path / 'app.py'}")
    if not path.exists():
        raise ConfigError(f"{place}: no such file (looked from {Path.cwd()})")
    path = path.resolve()
    own_directories.add(str(path.parent) + os.sep)
    parts = [path.stem]
    root = path.parent
    while (root / "__init__.py").exists() and root.name.isidentifier():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(parts)
    if len(parts) > 1:
        return importlib.import_module(name)
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"flowkit_app_{name}"  # a file may be called like a module that is loaded already
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{place}: is no Python file; name a .py file or a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{name!r} is no MODULE: give a dotted name (pkg.mod) or a path (dir/app.py)")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise
        path = Path(name.replace(".", os.sep) + ".py")
        hint = f"; did you mean {path}?" if path.is_file() else ""
        raise ConfigError(f"no module named {missing!r} (looked in {Path.cwd()} and on Python's path){hint}") from None


def _refused(place: str, error: BaseException) -> ConfigError:
    """Why a module cannot be imported: the error, then the user's own lines that led to it."""
    frames = user_frames(error)
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
        at = f"{shown_path(error.filename or place)}:{error.lineno}"
        refused = ConfigError(f"{at}: {described(error)}" + (f"\n    {line}" if line else ""))
    elif isinstance(error, ConfigError):
        at = f"{shown_path(frames[-1].filename)}:{frames[-1].lineno}"
        refused = ConfigError(*(f"{at}: {problem}" for problem in error.problems))
    elif isinstance(error, SystemExit):
        at = f"{shown_path(frames[-1].filename)}:{frames[-1].lineno}" if frames else place
        refused = ConfigError(
            f"{at}: leaves Python when it is imported (exit code {error.code}); put what it runs under "
            'if __name__ == "__main__":'
        )
    else:
        cure = ""
        if isinstance(error, ModuleNotFoundError):
            cure = f" (is it installed for {sys.executable}?)"
        trail = "".join(f"\n  {shown_path(f.filename)}:{f.lineno} in {f.name}\n    {f.line}" for f in frames)
        at = f"{shown_path(frames[-1].filename)}:{frames[-1].lineno}: " if frames else ""
        refused = ConfigError(f"{at}cannot import {place}: {described(error)}{cure}{trail}")
    refused.__traceback__ = None
    return refused
