"""The official Python client, unmodified, against a node with the scripted model. Called as: openai_client.py BASE_URL"""

import hashlib
import json
import sys
import typing

import openai
import pydantic


def mark(text):
    """What every scripted answer begins with."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chat(client):
    answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "one"}])
    assert answer.choices[0].message.content.startswith(mark("one")), answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 0, answer


def chat_stream(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two"}]
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="scripted", messages=messages, stream=True, stream_options=options)
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.startswith(mark("two")), text
    assert chunks[-1].usage.total_tokens > 0 and not chunks[-1].choices, chunks[-1]


def probabilities(client):
    messages = [{"role": "user", "content": "nine"}]
    asked = {"model": "scripted", "messages": messages, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**asked).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content, tokens
    assert tokens[0].token == mark("nine") and tokens[0].top_logprobs[0].token == tokens[0].token, tokens[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == tokens, streamed


class Weather(pydantic.BaseModel):
    city: typing.Literal["Paris"]
    celsius: int
    sky: typing.Literal["clear", "cloudy"]
    alerts: list[str]
    wind: typing.Optional[str]


def formats(client):
    messages = [{"role": "user", "content": "ten"}]
    answer = client.chat.completions.parse(model="scripted", messages=messages, response_format=Weather)
    assert answer.choices[0].message.parsed.city == "Paris", answer
    headers = {"X-Session-ID": "formats"}
    kept = client.chat.completions.parse(
        model="scripted", messages=messages, response_format=Weather, extra_headers=headers
    )
    assert kept.choices[0].message.parsed == answer.choices[0].message.parsed, kept
    response = client.responses.parse(model="scripted", input="ten", text_format=Weather)
    assert response.output_parsed == answer.choices[0].message.parsed, response
    mode = client.chat.completions.create(model="scripted", messages=messages, response_format={"type": "json_object"})
    assert isinstance(json.loads(mode.choices[0].message.content), dict), mode


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TELLS = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


def tools(client):
    messages = [{"role": "user", "content": TELLS}]
    asked = {"model": "scripted", "messages": messages, "tools": [TOOL]}
    choice = client.chat.completions.create(**asked).choices[0]
    call = choice.message.tool_calls[0]
    assert choice.finish_reason == "tool_calls" and json.loads(call.function.arguments) == {"city": "Paris"}, choice
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert streamed.content == choice.message.content, streamed
    assert streamed.tool_calls[0].function.arguments == call.function.arguments, streamed
    result = {"role": "tool", "tool_call_id": call.id, "content": "cloudy"}
    answer = client.chat.completions.create(**asked | {"messages": [*messages, choice.message, result]})
    assert answer.choices[0].message.content.startswith(mark("cloudy")), answer


def responses(client):
    first = client.responses.create(model="scripted", input="three")
    assert first.output_text.startswith(mark("three")) and first.status == "completed", first
    second = client.responses.create(model="scripted", input="four", previous_response_id=first.id)
    assert second.output_text.startswith(mark("four")) and second.previous_response_id == first.id, second
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text, again


def responses_stream(client):
    conversation = client.conversations.create(metadata={"topic": "tests"})
    with client.responses.stream(model="scripted", input="five", conversation=conversation.id) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text and text.startswith(mark("five")), (text, final)
    client.responses.create(model="scripted", input="six", conversation=conversation.id)
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert [item.role for item in items] == ["user", "assistant"] * 2, items
    assert items[2].content[0].text == "six" and items[3].content[0].text.startswith(mark("six")), items


def sessions_and_keys(client):
    def ask(text, key):
        headers = {"X-Session-ID": "python", "Idempotency-Key": key}
        raw = client.chat.completions.with_raw_response
        return raw.create(model="scripted", messages=[{"role": "user", "content": text}], extra_headers=headers)

    first, again = ask("seven", "k1"), ask("seven", "k1")
    assert first.headers["x-turn-id"] == again.headers["x-turn-id"], again.headers
    assert again.headers["idempotency-replayed"] == "true", again.headers
    assert first.parse().choices[0].message.content == again.parse().choices[0].message.content
    try:
        ask("eight", "k1")
        raise AssertionError("another body under the same key was taken")
    except openai.ConflictError as error:
        assert error.body["code"] == "idempotency_conflict", error.body


def errors(client):
    for call, kind, code in [
        (lambda: client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}]),
         openai.NotFoundError, "model_not_found"),
        (lambda: client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "x"}], temperature=-1),
         openai.BadRequestError, "invalid_value"),
        (lambda: client.conversations.retrieve("nobody"), openai.NotFoundError, "session_not_found"),
    ]:
        try:
            call()
            raise AssertionError(f"no {code}")
        except kind as error:
            assert error.body["code"] == code and error.body["message"], error.body


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="any")
    assert "scripted" in [model.id for model in client.models.list()]
    checks = [chat, chat_stream, probabilities, formats, tools, responses, responses_stream, sessions_and_keys, errors]
    for check in checks:
        check(client)
        print(f"ok {check.__name__}")


main()
