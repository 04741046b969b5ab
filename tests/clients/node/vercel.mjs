// Vercel's AI SDK: its compatible provider, its default one (the Responses API) and Anthropic's.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, jsonSchema, streamText, tool as aiTool } from 'ai'
import { check, city, key, model, question, run, tokens, url } from './flow.mjs'

globalThis.AI_SDK_LOG_WARNINGS = false
const compatible = createOpenAICompatible({
  name: 'here',
  baseURL: `${url}/v1`,
  apiKey: key,
  supportsStructuredOutputs: true,
})(model)
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: key })
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey: key })(model)
const short = { prompt: question, maxOutputTokens: tokens, maxRetries: 0 }

async function textOf(result) {
  let text = ''
  for await (const part of result.fullStream) {
    if (part.type === 'error') throw part.error
    if (part.type === 'text-delta') text += part.text
  }
  return text
}

await run({
  async chat() {
    check((await generateText({ model: compatible, ...short })).text, 'text')
  },
  async chat_stream() {
    check(await textOf(streamText({ model: compatible, ...short })), 'text')
  },
  async structured_output() {
    const { object } = await generateObject({
      model: compatible,
      ...short,
      maxOutputTokens: 120,
      schema: jsonSchema(city),
    })
    check(typeof object.city === 'string', 'a city')
  },
  async tools() {
    const answer = await generateText({
      model: compatible,
      ...short,
      maxOutputTokens: 80,
      toolChoice: 'required',
      tools: { get_weather: aiTool({ description: 'Weather.', inputSchema: jsonSchema(city) }) },
    })
    check(answer.toolCalls[0].toolName === 'get_weather', 'a call')
  },
  async default_provider() {
    check((await generateText({ model: openai(model), ...short })).text, 'text')
  },
  async default_provider_stream() {
    check(await textOf(streamText({ model: openai(model), ...short })), 'text')
  },
  async anthropic() {
    check((await generateText({ model: anthropic, ...short })).text, 'text')
    check(await textOf(streamText({ model: anthropic, ...short })), 'text')
  },
})
