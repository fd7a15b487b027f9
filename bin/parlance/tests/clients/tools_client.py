"""The official Python client, calling tools of a real model whose chat template has them. Called as: tools_client.py BASE_URL MODEL PLAIN_MODEL"""

import json
import sys
import typing

import openai
import pydantic

SEEDS = 8


class GetWeather(pydantic.BaseModel):
    """Says how the weather is."""

    city: typing.Literal["Paris", "Köln", "Oslo"]
    days: int = pydantic.Field(ge=1, le=3)
    units: typing.Optional[typing.Literal["celsius", "fahrenheit"]]


class Place(pydantic.BaseModel):
    kind: typing.Literal["home", "work"]


class SetAlarm(pydantic.BaseModel):
    place: Place
    hours: list[typing.Literal[6, 7, 8]] = pydantic.Field(max_length=2)


KINDS = {kind.__name__: kind for kind in [GetWeather, SetAlarm]}
TOOLS = [openai.pydantic_function_tool(kind) for kind in KINDS.values()]
QUESTION = [{"role": "user", "content": "How is the weather in Paris?"}]


def ask(client, **more):
    asked = {"model": sys.argv[2], "messages": QUESTION, "tools": TOOLS, "max_tokens": 400, "temperature": 1} | more
    return client.chat.completions.create(**asked)


def valid(call):
    KINDS[call.function.name].model_validate_json(call.function.arguments)
    return call


def required(client):
    for seed in range(SEEDS):
        choice = ask(client, tool_choice="required", seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        assert len(choice.message.tool_calls) == 1 and valid(choice.message.tool_calls[0]).id, choice


def named(client):
    for name in KINDS:
        choice = {"type": "function", "function": {"name": name}}
        called = ask(client, tool_choice=choice, seed=1).choices[0].message.tool_calls
        assert [valid(call).function.name for call in called] == [name], called


def streamed(client):
    whole = ask(client, tool_choice="required", seed=3).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(
        model=sys.argv[2], messages=QUESTION, tools=TOOLS, max_tokens=400, temperature=1, tool_choice="required", seed=3
    ) as stream:
        final = stream.get_final_completion().choices[0]
    call = final.message.tool_calls[0]
    assert final.finish_reason == "tool_calls" and not final.message.content, final
    assert (call.function.name, call.function.arguments) == (whole.function.name, whole.function.arguments), (call, whole)


def free(client):
    for seed in range(SEEDS):
        choice = ask(client, seed=seed, max_tokens=60).choices[0]
        calls = choice.message.tool_calls or []
        assert choice.finish_reason in (["tool_calls"] if calls else ["stop", "length"]), choice
        assert not calls or "<tool_call>" not in (choice.message.content or ""), choice


def returned(client):
    call = ask(client, tool_choice="required", seed=0).choices[0].message
    bare = ask(client, tool_choice="none", max_tokens=8).usage.prompt_tokens
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": json.dumps({"sky": "clear"})}
    answer = ask(client, messages=[*QUESTION, call, result], tool_choice="none", max_tokens=8)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls, answer
    assert answer.usage.prompt_tokens > bare + 20, "the call and its result are in the prompt"


def refused(client):
    try:
        ask(client, model=sys.argv[3])
        raise AssertionError("a template without tools was given some")
    except openai.BadRequestError as error:
        assert error.body["param"] == "tools" and "template" in error.body["message"], error.body


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
    for check in [required, named, streamed, free, returned, refused]:
        check(client)
        print(f"ok {check.__name__}")


main()
