// openai-node's embeddings, which come as base64 unless numbers are asked for.
import OpenAI from 'openai'
import { check, key, model, run, url } from './flow.mjs'

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0, timeout: 240_000 })

await run({
  async embeddings() {
    const made = await client.embeddings.create({ model, input: ['가나', '다라'] })
    check(made.data.length === 2 && made.data[0].embedding.length > 0, 'two vectors')
    check(made.data[0].embedding.every(Number.isFinite), 'numbers')
  },
})
