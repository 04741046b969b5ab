"""All texts of the page, in Korean and English.

The browser chooses the language of labels (Gradio's I18n, by `navigator.language`). Sentences that the
server writes later are in the language of the request's Accept-Language header.
"""

from __future__ import annotations

from typing import Literal

Language = Literal["ko", "en"]

KO = {
    "placeholder": "메시지를 입력하세요",
    "message": "메시지",
    "conversation": "대화",
    "model": "모델",
    "settings": "설정",
    "system": "시스템 프롬프트",
    "system_hint": "모델의 역할과 말투를 정합니다. 비워 두어도 됩니다.",
    "temperature": "온도",
    "temperature_hint": "낮을수록 한결같고 높을수록 다양하게 답합니다.",
    "top_p": "Top-p",
    "top_p_hint": "확률이 높은 낱말부터 이만큼만 고려합니다.",
    "max_tokens": "최대 길이 (토큰)",
    "max_tokens_hint": "답변 하나의 최대 길이입니다.",
    "welcome": "무엇을 도와드릴까요?",
    "foot": "답변이 틀릴 수 있으니 중요한 내용은 확인해 주세요.",
    "reconnecting": "페이지 서버에 다시 연결하는 중입니다…",
    "send": "보내기",
    "stop": "중지",
    "example_1": "자기소개를 세 문장으로 해 주세요.",
    "example_2": "파이썬으로 피보나치 수열을 구하는 함수를 작성해 주세요.",
    "example_3": "주말에 다녀올 만한 서울 산책길을 추천해 주세요.",
    "retry": "다시 시도",
    "ready": "준비됨",
    "connecting": "연결하는 중",
    "status_no_worker": "실행 중인 워커가 없습니다",
    "status_api_down": "API 서버에 연결할 수 없습니다",
    "status_no_access": "API 키가 맞지 않습니다",
    "no_worker": "지금은 답할 수 있는 워커가 없습니다. 워커가 준비되면 다시 시도해 주세요.",
    "api_down": "API 서버에 연결할 수 없습니다. 잠시 후 다시 시도해 주세요.",
    "no_access": "API 키가 맞지 않아 요청이 거절되었습니다. 관리자에게 문의해 주세요.",
    "lost": "답변 도중 워커와의 연결이 끊겼습니다. 여기까지의 답변은 남겨 두었습니다.",
    "failed": "답변을 만드는 중 문제가 생겼습니다. 다시 시도해 주세요.",
    "model_gone": "‘{model}’ 모델을 더 이상 사용할 수 없습니다. 다른 모델을 골라 주세요.",
    "too_long": "대화가 모델이 읽을 수 있는 길이를 넘었습니다. 메시지나 최대 길이를 줄이거나, "
    "대화를 지우고 새로 시작해 주세요.",
    "queued": "순서를 기다리고 있습니다. 지금 {position}번째이고, 약 {seconds}초 걸립니다.",
    "busy": "요청이 많아 지금은 처리할 수 없습니다. 잠시 후 다시 시도해 주세요.",
    "refused": "요청을 처리할 수 없습니다: {reason}",
    "length": "최대 길이에 닿아 여기서 멈췄습니다. 설정에서 최대 길이를 늘릴 수 있습니다.",
    "cut": "메시지가 너무 길어 앞의 {limit}자만 보냈습니다.",
}

EN = {
    "placeholder": "Type a message",
    "message": "Message",
    "conversation": "Conversation",
    "model": "Model",
    "settings": "Settings",
    "system": "System prompt",
    "system_hint": "Sets the model's role and tone. May be left empty.",
    "temperature": "Temperature",
    "temperature_hint": "Lower is steadier, higher is more varied.",
    "top_p": "Top-p",
    "top_p_hint": "Considers only the likeliest words, up to this share.",
    "max_tokens": "Maximum length (tokens)",
    "max_tokens_hint": "The longest a single answer may be.",
    "welcome": "How can I help you?",
    "foot": "Answers can be wrong: check what matters.",
    "reconnecting": "Reconnecting to the page's server…",
    "send": "Send",
    "stop": "Stop",
    "example_1": "Introduce yourself in three sentences.",
    "example_2": "Write a Python function for the Fibonacci sequence.",
    "example_3": "Suggest a weekend walk in Seoul.",
    "retry": "Try again",
    "ready": "Ready",
    "connecting": "Connecting",
    "status_no_worker": "No worker is running",
    "status_api_down": "Cannot reach the API server",
    "status_no_access": "The API key is not accepted",
    "no_worker": "No worker can answer right now. Please try again once one is ready.",
    "api_down": "Cannot reach the API server. Please try again in a moment.",
    "no_access": "The request was refused: the API key is not accepted. Ask your administrator.",
    "lost": "The worker was lost in the middle of the answer. What it said so far is kept.",
    "failed": "Something went wrong while making the answer. Please try again.",
    "model_gone": "The model '{model}' is no longer available. Please choose another one.",
    "too_long": "The conversation is longer than the model can read. Shorten the message or the "
    "maximum length, or clear the conversation and start again.",
    "queued": "Waiting for a turn: number {position} in line, about {seconds} s.",
    "busy": "Too many requests at the moment. Please try again shortly.",
    "refused": "The request cannot be served: {reason}",
    "length": "Stopped here at the maximum length. It can be raised in the settings.",
    "cut": "The message was too long; only its first {limit} characters were sent.",
}

TEXTS: dict[Language, dict[str, str]] = {"ko": KO, "en": EN}

# Gradio's own labels that its Korean bundle lacks (6.31).
GRADIO_KO = {
    "chat_interface.new_chat": "새 대화",
    "chat_interface.message_placeholder": "메시지를 입력하세요",
    "chat_interface.additional_inputs": "추가 입력",
    "chat_interface.chatbot": "대화",
    "chat_interface.conversation": "대화",
    "chatbot.complete": "완료",
    "chatbot.copy_message": "메시지 복사",
    "chatbot.copied_message": "복사됨",
    "status.queue_position": "대기 순서: {size}명 중 {position}번째",
}

# English texts that Gradio's page (6.31) does not translate. page.js replaces texts that begin so.
GRADIO_FIXED_KO = {
    "Connection Lost": "연결이 끊어졌습니다",
    "Connection to the server was lost. Attempting reconnection...": "다시 연결하는 중입니다…",
    "chatbot conversation": "대화 내용",
    "user's message:": "내 메시지:",
    "bot's message:": "답변:",
    "number input for": "숫자 입력:",
    "range slider for": "슬라이더:",
    "Reset to default value": "기본값으로",
    "Select example": "예시",
    "undo": "실행 취소",
    "Copy code": "코드 복사",
    "Copied": "복사됨",
    "Copy": "복사",
    "Close": "닫기",
}


def language_of(accept_language: str | None) -> Language:
    """Korean or English, by the weights in an Accept-Language header; Korean if it has neither.

    Source: RFC 9110 section 12.5.4.
    """
    best: Language = "ko"
    weight = 0.0
    for item in (accept_language or "").split(","):
        tag, _, rest = item.strip().partition(";")
        primary = tag.strip().lower().partition("-")[0]
        quality = _quality(rest)
        if primary in ("ko", "en") and quality > weight:
            best, weight = ("ko" if primary == "ko" else "en"), quality
    return best


def say(language: Language, key: str, **fields: object) -> str:
    """The text `key` with `fields` in its braces."""
    return TEXTS[language][key].format(**fields)


def _quality(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0
