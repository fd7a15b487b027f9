"""The official Python client, unmodified, against a node that serves all-MiniLM-L6-v2 and the scripted model.

Called as: embeddings_client.py BASE_URL FIXTURES, where FIXTURES holds embeddings.json and embeddings.bin."""

import array
import json
import math
import sys

import openai

MODEL = "all-minilm-l6-v2"


def cosine(a, b):
    def dot(a, b):
        return sum(x * y for x, y in zip(a, b))

    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def near(answer, expected):
    assert len(answer.data) == len(expected) and answer.model == MODEL, answer.model
    for index, (item, vector) in enumerate(zip(answer.data, expected)):
        assert item.index == index and len(item.embedding) == 384, (item.index, len(item.embedding))
        assert cosine(item.embedding, vector) >= 0.999, (index, cosine(item.embedding, vector))


def texts(client, expected):
    """The client asks for base64 by itself and decodes it."""
    answer = client.embeddings.create(model=MODEL, input=[item["text"] for item, _ in expected])
    near(answer, [vector for _, vector in expected])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(item["ids"]) for item, _ in expected)


def one_text(client, expected):
    item, vector = expected[0]
    near(client.embeddings.create(model=MODEL, input=item["text"], encoding_format="float", dimensions=384), [vector])


def tokens(client, expected):
    near(client.embeddings.create(model=MODEL, input=[item["ids"] for item, _ in expected]), [vector for _, vector in expected])
    near(client.embeddings.create(model=MODEL, input=expected[1][0]["ids"]), [expected[1][1]])


def many(client, expected):
    answer = client.embeddings.create(model=MODEL, input=[expected[n % 3][0]["text"] for n in range(2048)])
    near(answer, [expected[n % 3][1] for n in range(2048)])


def headers(client, expected):
    item, vector = expected[2]
    near(client.embeddings.create(model="scripted", input=item["text"], extra_headers={"X-Model-ID": MODEL}), [vector])


def models(client, _expected):
    served = {model.id: model.kind for model in client.models.list()}
    assert served == {MODEL: "embedding", "scripted": "chat"}, served
    assert client.models.retrieve(MODEL).dimensions == 384


def errors(client, _expected):
    messages = [{"role": "user", "content": "x"}]
    for call, code, param in [
        (lambda: client.embeddings.create(model=MODEL, input="word " * 300), "context_length_exceeded", "input"),
        (lambda: client.embeddings.create(model=MODEL, input="x", dimensions=128), "invalid_value", "dimensions"),
        (lambda: client.embeddings.create(model=MODEL, input=[[30522]]), "invalid_value", "input"),
        (lambda: client.embeddings.create(model=MODEL, input=["x"] * 2049), "invalid_value", "input"),
        (lambda: client.embeddings.create(model="scripted", input="x"), "invalid_value", "model"),
        (lambda: client.chat.completions.create(model=MODEL, messages=messages), "invalid_value", "model"),
        (lambda: client.responses.create(model=MODEL, input="x"), "invalid_value", "model"),
    ]:
        try:
            call()
            raise AssertionError(f"no {code} for {param}")
        except openai.BadRequestError as error:
            assert (error.body["code"], error.body["param"]) == (code, param), error.body


def main():
    client = openai.OpenAI(base_url=sys.argv[1], api_key="any")
    with open(f"{sys.argv[2]}/embeddings.json", encoding="utf-8") as file:
        items = json.load(file)
    vectors = array.array("f")
    with open(f"{sys.argv[2]}/embeddings.bin", "rb") as file:
        vectors.frombytes(file.read())
    if sys.byteorder == "big":
        vectors.byteswap()
    expected = [(item, vectors[384 * n : 384 * (n + 1)]) for n, item in enumerate(items)]
    for check in [texts, one_text, tokens, many, headers, models, errors]:
        check(client, expected)
        print(f"ok {check.__name__}")


main()
