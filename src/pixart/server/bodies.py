"""JSON bodies, read strictly, and what is wrong with one as a sentence: the field, the limit, the nearest value."""

import difflib
import json
import re
from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException

from pixart.config import unknown
from pixart.errors import shown
from pixart.files import unique_keys, whole

EXAMPLES = {
    "size": "auto, or width and height as in 1024x1024",
    "loras": "names of adapters and strengths, as in style:0.8,subject",
}


class Closed(BaseModel):
    """A body whose fields are all known, and of just these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Error(BaseModel):
    """OpenAI's error object."""

    class Detail(BaseModel):
        message: str
        type: str
        param: str | None
        code: str | None

    error: Detail


RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


class StrictRoute(APIRoute):
    """A route whose JSON bodies have no double keys, no NaN, and nothing that is no text."""

    def get_route_handler(self) -> Callable:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Any:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            body = (await self.body()).decode()
            return json.loads(body, object_pairs_hook=unique_keys, parse_int=whole, parse_constant=_no_constant)
        except RecursionError:
            raise HTTPException(400, "The body is nested too deep to be read.") from None
        except UnicodeDecodeError:
            raise HTTPException(400, "The body is not UTF-8 text.") from None
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise HTTPException(400, f"The body is not JSON: {shown(str(error), 200)}.") from None


def describe(error: dict[str, Any], known: list[str]) -> tuple[str, str | None]:
    """One of pydantic's errors as a sentence, and the field it is about; `known` are the fields that there are."""
    path = [str(part) for part in error["loc"][1:]]
    field, given, context = ".".join(path)[:100] or None, _given(error.get("input")), error.get("ctx", {})
    match error["type"]:
        case "json_invalid":
            return "The body is not JSON.", None
        case _ if field is None:
            return "The body must be a JSON object.", None
        case "missing":
            message = f"{field} is missing."
        case "extra_forbidden":
            return unknown("field", path[-1], known), field
        case "less_than_equal":
            message = f"{field} must be at most {context['le']:g}, not {given}; the nearest is {context['le']:g}."
        case "greater_than_equal":
            message = f"{field} must be at least {context['ge']:g}, not {given}; the nearest is {context['ge']:g}."
        case "string_too_long":
            message = f"{field} has {len(error['input']):,} characters, and {context['max_length']:,} are the most."
        case "string_pattern_mismatch":
            message = f"{field} must be {EXAMPLES.get(field, context['pattern'])}, not {given}."
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"])
            near = difflib.get_close_matches(str(error["input"])[:100], allowed, n=1, cutoff=0)
            nearest = f"; the nearest is {near[0]}" if near else ""
            message = f"{field} must be one of {', '.join(allowed)}, not {given}{nearest}."
        case "none_required":
            message = f"{field} is not offered here; leave it out."
        case _:
            message = f"{field}: {error['msg']}, not {given}."
    return message, field


def invalid_fields(error: ValidationError, kind: type[BaseModel]) -> RequestValidationError:
    """What FastAPI raises for a body, for fields that came in a form; carries the names of the known fields."""
    raised = RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()])
    raised.known = list(kind.model_fields)
    return raised


def _given(value: Any) -> str:
    return shown(value) if isinstance(value, int | float) else f'"{shown(value)}"' if isinstance(value, str) else "that"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
