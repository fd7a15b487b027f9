//! Chat templates in the Jinja that the families' own use: what they build from must be understood as transformers' Jinja does.

use parlance_inference_engine::{ChatMessage, ChatRole};

use crate::template::ChatTemplate;

/// As Qwen3's looks for the last question: a namespace, a reversed list, tests of kinds, Python's methods of strings.
const QWEN3: &str = "\
    {%- if tools %}{{- raise_exception('no tools here') }}{%- endif %}\
    {%- set ns = namespace(open=true, last=messages|length - 1) %}\
    {%- for message in messages[::-1] %}\
    {%- set index = (messages|length - 1) - loop.index0 %}\
    {%- if ns.open and message.role == 'user' and message.content is string and not(message.content.startswith('<t>') and \
        message.content.endswith('</t>')) %}\
    {%- set ns.open = false %}{%- set ns.last = index %}\
    {%- endif %}{%- endfor %}\
    {%- for message in messages %}\
    {%- set content = message.content %}\
    {%- if message.role == 'assistant' and '</think>' in content %}\
    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\
    {%- endif %}\
    {{- '[' + message.role + (' last' if loop.index0 == ns.last else '') + ']' + content }}\
    {%- if loop.last or (not loop.last and message.reasoning_content is string) %}{{- '.' }}{%- endif %}\
    {%- endfor %}\
    {%- if add_generation_prompt %}{{- '[assistant]' }}\
    {%- if enable_thinking is defined and enable_thinking is false %}{{- 'never' }}{%- endif %}{%- endif %}";

/// As Llama 3's: what may be defined, slices of the messages, keys in brackets.
const LLAMA3: &str = "\
    {{- bos_token }}\
    {%- if not date_string is defined %}\
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul' %}{%- endif %}\
    {%- endif %}\
    {%- if messages[0]['role'] == 'system' %}\
    {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}\
    {%- else %}{%- set system = '' %}{%- endif %}\
    {{- '[system]' + date_string + ' ' + system }}\
    {%- for message in messages %}\
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\
    {{- '[' + message['role'] + ']' + message['content'] | trim + eos_token }}\
    {%- endif %}{%- endfor %}";

/// As those of Llama 2 and Mistral: roles in turn.
const MISTRAL: &str = "\
    {{ bos_token }}{% for message in messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
    {% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
    {% elif message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}\
    {% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}";

fn render(template: &str, messages: &[(ChatRole, &str)]) -> Result<String, String> {
    let template = ChatTemplate::new(template, Vec::new(), "<s>", "</s>")?;
    let messages: Vec<_> = messages.iter().map(|&(role, content)| ChatMessage { role, content }).collect();
    template.render(&messages).map(|rendered| rendered.text)
}

#[test]
fn the_families_templates_render() {
    let chat =
        [(ChatRole::User, "One "), (ChatRole::Assistant, "<think>\nhm\n</think>\n\nTwo"), (ChatRole::User, " Three")];
    let qwen3 = "[user]One [assistant]Two[user last] Three.[assistant]";
    assert_eq!(render(QWEN3, &chat), Ok(qwen3.to_owned()));
    let with_system = [&[(ChatRole::System, " Be kind. ")][..], &chat].concat();
    let llama3 = "<s>[system]26 Jul Be kind.[user]One</s>[assistant]<think>\nhm\n</think>\n\nTwo</s>[user]Three</s>";
    assert_eq!(render(LLAMA3, &with_system), Ok(llama3.to_owned()));
    let mistral = "<s>[INST] One  [/INST] <think>\nhm\n</think>\n\nTwo </s>[INST]  Three [/INST]";
    assert_eq!(render(MISTRAL, &chat), Ok(mistral.to_owned()));
    assert!(render(MISTRAL, &chat[..1]).is_ok() && render(MISTRAL, &chat[1..]).is_err_and(|e| e.contains("alternate")));
}
