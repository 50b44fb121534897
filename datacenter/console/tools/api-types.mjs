// Makes src/api/schema.ts of docs/api/openapi.json: one interface a schema, and one entry of `Calls` for each method and path.
//
// It knows the part of OpenAPI that the datacenter's document uses and fails on anything else, so that a new construct is never
// turned into `any` unseen. A generator from the registry would bring a compiler of its own and twenty packages for the same.
import { readFileSync, writeFileSync } from 'node:fs';

const source = new URL('../../../docs/api/openapi.json', import.meta.url);
const target = new URL('../src/api/schema.ts', import.meta.url);
const document = JSON.parse(readFileSync(source, 'utf8'));

const SCALARS = { string: 'string', integer: 'number', number: 'number', boolean: 'boolean', null: 'null' };
const METHODS = ['get', 'put', 'post', 'delete', 'patch'];

const comment = (text, indent) =>
  text ? `${indent}/** ${text.replaceAll('\n', ' ').replaceAll('*/', '* /')} */\n` : '';
const name = (reference) => reference.replace('#/components/schemas/', '');

function object(schema, indent) {
  const required = new Set(schema.required ?? []);
  const inner = `${indent}  `;
  const fields = Object.entries(schema.properties ?? {}).map(
    ([field, of]) => `${comment(of.description, inner)}${inner}${field}${required.has(field) ? '' : '?'}: ${type(of, inner)};\n`,
  );
  return `{\n${fields.join('')}${indent}}`;
}

function type(schema, indent, where = '') {
  if (schema.$ref) return name(schema.$ref);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(' | ');
  // A struct with another one flattened into it.
  if (schema.allOf) return schema.allOf.map((one) => type(one, indent)).join(' & ');
  if (schema.oneOf) return schema.oneOf.map((one) => type(one, indent)).join(' | ');
  if (Array.isArray(schema.type)) return schema.type.map((one) => type({ ...schema, type: one }, indent)).join(' | ');
  if (schema.type === 'array') return `Array<${type(schema.items, indent)}>`;
  if (schema.type === 'object') return object(schema, indent);
  if (schema.type in SCALARS) return SCALARS[schema.type];
  throw new Error(`tools/api-types.mjs does not know this schema: ${where} ${JSON.stringify(schema)}`);
}

const json = (holder) => holder?.content?.['application/json']?.schema;

function call(method, path, operation) {
  const parameters = (place) =>
    (operation.parameters ?? [])
      .filter((parameter) => parameter.in === place)
      .map((p) => `${p.name}${p.required ? '' : '?'}: ${type(p.schema, '')}`);
  const body = json(operation.requestBody);
  const [, answer] = Object.entries(operation.responses).find(([status]) => status.startsWith('2'));
  const result = json(answer);
  return `${comment(operation.summary, '  ')}  '${method.toUpperCase()} ${path}': {
    path: { ${parameters('path').join('; ')} };
    query: { ${parameters('query').join('; ')} };
    body: ${body ? type(body, '    ') : 'undefined'};
    answer: ${result ? type(result, '    ') : 'undefined'};
  };\n`;
}

let text = '// Made by tools/api-types.mjs of docs/api/openapi.json. Changes here are lost.\n\n';
for (const [schema, of] of Object.entries(document.components.schemas)) {
  text += comment(of.description, '');
  text += of.properties && !of.oneOf && !of.allOf ? `export interface ${schema} ${object(of, '')}\n\n` : `export type ${schema} = ${type(of, '', schema)};\n\n`;
}
text += 'export interface Calls {\n';
for (const [path, operations] of Object.entries(document.paths)) {
  for (const method of METHODS) if (operations[method]) text += call(method, path, operations[method]);
}
text += '}\n';
writeFileSync(target, text);
