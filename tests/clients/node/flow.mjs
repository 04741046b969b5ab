// Runs the flows of one client library and prints a line of JSON for each, as flows/flow.py does.
//     node openai_node.mjs ROOT_URL MODEL [FLOW ...]

export const [url, model] = process.argv.slice(2)
export const key = process.env.CLIENT_KEY ?? 'none'
export const question = 'What is the capital of France?'
export const messages = [{ role: 'user', content: question }]
export const tokens = 24 // most of an answer
export const city = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 20 } },
  required: ['city'],
  additionalProperties: false,
}
export const tool = {
  type: 'function',
  function: { name: 'get_weather', description: 'Weather of a city.', parameters: city },
}

export function check(value, what) {
  if (!value) throw new Error(`not as expected: ${what}`)
}

export async function run(flows) {
  const chosen = process.argv.slice(4)
  for (const [flow, act] of Object.entries(flows)) {
    if (chosen.length && !chosen.includes(flow)) continue
    let outcome = { ok: true }
    try {
      await act()
    } catch (error) {
      const text = `${error.name}: ${error.message}`.replace(/\s+/g, ' ')
      outcome = { ok: false, error: text.slice(0, 400) }
    }
    console.log(JSON.stringify({ flow, ...outcome }))
  }
}
