// openai-node.
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'
import { check, key, messages, model, question, run, tokens, tool, url } from './flow.mjs'

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 240_000 })
const chatBody = { model, messages, max_tokens: tokens, temperature: 0 }
const City = z.object({ city: z.string() })

await run({
  async chat() {
    const answer = await client.chat.completions.create(chatBody)
    check(answer.choices[0].message.content, 'text')
  },
  async chat_stream() {
    let text = ''
    for await (const chunk of await client.chat.completions.create({ ...chatBody, stream: true }))
      text += chunk.choices[0]?.delta?.content ?? ''
    check(text, 'text')
  },
  async parse() {
    const answer = await client.chat.completions.parse({
      ...chatBody,
      max_tokens: 120,
      response_format: zodResponseFormat(City, 'city'),
    })
    check(typeof answer.choices[0].message.parsed.city === 'string', 'a city')
  },
  async tools() {
    const answer = await client.chat.completions.create({
      ...chatBody,
      max_tokens: 80,
      tools: [tool],
      tool_choice: 'required',
    })
    check(answer.choices[0].message.tool_calls[0].function.name === 'get_weather', 'a call')
  },
  async responses() {
    const answer = await client.responses.create({ model, input: question, max_output_tokens: tokens })
    check(answer.output_text, 'text')
  },
  async responses_stream() {
    let text = ''
    const stream = await client.responses.create({
      model,
      input: question,
      max_output_tokens: tokens,
      stream: true,
    })
    for await (const event of stream)
      if (event.type === 'response.output_text.delta') text += event.delta
    check(text, 'text')
  },
})
