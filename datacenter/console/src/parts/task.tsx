// Whatever changes something: a dialog that says what it does, asks what it needs, and stays open with the reason if it did not work.
//
// A dangerous task says what is lost, and where it cannot be undone has its object's name typed.

import {
  Alert,
  Button,
  Checkbox,
  Form,
  FormGroup,
  FormHelperText,
  FormSelect,
  FormSelectOption,
  HelperText,
  HelperTextItem,
  Modal,
  ModalBody,
  ModalFooter,
  ModalHeader,
  TextInput,
} from '@patternfly/react-core';
import type { FormEvent, ReactNode } from 'react';
import { useState } from 'react';

import type { ApiFailure } from '../api/client';
import { asFailure } from '../api/poll';
import { sentence } from '../model/units';

export interface Field {
  name: string;
  label: string;
  help?: string;
  initial?: string | boolean;
  required?: boolean;
  /** A choice: value and words. */
  options?: [value: string, words: string][];
  /** What is wrong with a text, if something is. */
  check?: (text: string) => string | undefined;
}

export type Values = Record<string, string | boolean>;

export interface Task {
  title: string;
  /** What it does, and what is lost. */
  about?: ReactNode;
  /** The button's word. */
  verb: string;
  danger?: boolean;
  fields?: Field[];
  /** Text that is to be typed before it can be done. */
  type?: string;
  /** Does it. What it returns is shown in the dialog instead of the form (a secret that is shown once, say); nothing closes it. */
  run: (values: Values) => Promise<ReactNode | void>;
}

/** A text that was filled in, without blanks at its ends; undefined if it is empty. */
export function text(values: Values, name: string): string | undefined {
  const value = values[name];
  return typeof value === 'string' && value.trim() !== '' ? value.trim() : undefined;
}

function Fill({ field, value, set, tried }: { field: Field; value: string | boolean; set: (value: string | boolean) => void; tried: boolean }) {
  const id = `task-${field.name}`;
  if (typeof value === 'boolean') {
    return <Checkbox id={id} label={field.label} isChecked={value} onChange={(_, checked) => set(checked)} {...(field.help ? { description: field.help } : {})} />;
  }
  const wrong = tried ? mistake(field, value) : undefined;
  const help = `${id}-help`;
  return (
    <FormGroup label={field.label} fieldId={id} isRequired={field.required ?? false}>
      {field.options ? (
        <FormSelect id={id} value={value} onChange={(_, next) => set(next)} aria-describedby={help}>
          {field.options.map(([option, words]) => (
            <FormSelectOption key={option} value={option} label={words} />
          ))}
        </FormSelect>
      ) : (
        <TextInput
          id={id}
          value={value}
          onChange={(_, next) => set(next)}
          validated={wrong ? 'error' : 'default'}
          aria-describedby={help}
          isRequired={field.required ?? false}
          autoComplete="off"
          spellCheck={false}
        />
      )}
      {(wrong || field.help) && (
        <FormHelperText>
          <HelperText id={help} aria-live={wrong ? 'polite' : 'off'}>
            <HelperTextItem variant={wrong ? 'error' : 'default'}>{wrong ?? field.help}</HelperTextItem>
          </HelperText>
        </FormHelperText>
      )}
    </FormGroup>
  );
}

function mistake(field: Field, value: string | boolean | undefined): string | undefined {
  if (typeof value !== 'string') return undefined;
  if (field.required && value.trim() === '') return `${field.label} is needed`;
  return value.trim() === '' ? undefined : field.check?.(value.trim());
}

function Dialog({ task, close }: { task: Task; close: () => void }) {
  const fields = task.fields ?? [];
  const [values, setValues] = useState<Values>(() => Object.fromEntries(fields.map((field) => [field.name, field.initial ?? ''])));
  const [typed, setTyped] = useState('');
  const [busy, setBusy] = useState(false);
  const [tried, setTried] = useState(false);
  const [failure, setFailure] = useState<ApiFailure>();
  const [result, setResult] = useState<ReactNode>();
  const ready = task.type === undefined || typed === task.type;

  const submit = async (event: FormEvent): Promise<void> => {
    event.preventDefault();
    setTried(true);
    if (busy || !ready || fields.some((field) => mistake(field, values[field.name]) !== undefined)) return;
    setBusy(true);
    setFailure(undefined);
    try {
      const came = await task.run(values);
      if (came === undefined) close();
      else setResult(came);
    } catch (error) {
      setFailure(asFailure(error));
    } finally {
      setBusy(false);
    }
  };

  return (
    <Modal isOpen variant="small" onClose={close} aria-labelledby="task-title" aria-describedby="task-body">
      <ModalHeader title={task.title} labelId="task-title" {...(task.danger ? { titleIconVariant: 'warning' as const } : {})} />
      <ModalBody id="task-body">
        {result ?? (
          <Form id="task-form" onSubmit={(event) => void submit(event)} noValidate>
            {task.about && <div className="splice-task-about">{task.about}</div>}
            {fields.map((field) => (
              <Fill
                key={field.name}
                field={field}
                value={values[field.name] ?? ''}
                set={(value) => setValues((all) => ({ ...all, [field.name]: value }))}
                tried={tried}
              />
            ))}
            {task.type !== undefined && (
              <FormGroup label={`Type ${task.type} to go on`} fieldId="task-type" isRequired>
                <TextInput id="task-type" value={typed} onChange={(_, next) => setTyped(next)} autoComplete="off" spellCheck={false} isRequired />
              </FormGroup>
            )}
            {failure && (
              <Alert isInline component="p" variant="danger" title={sentence(failure.message)} role="alert">
                {failure.help && sentence(failure.help)}
              </Alert>
            )}
          </Form>
        )}
      </ModalBody>
      <ModalFooter>
        {result === undefined ? (
          <>
            <Button key="do" type="submit" form="task-form" variant={task.danger ? 'danger' : 'primary'} isLoading={busy} isDisabled={busy || !ready}>
              {task.verb}
            </Button>
            <Button key="no" variant="link" onClick={close}>
              Cancel
            </Button>
          </>
        ) : (
          <Button key="close" onClick={close}>
            Close
          </Button>
        )}
      </ModalFooter>
    </Modal>
  );
}

/** A place for the dialog, and what opens it. */
export function useTask(): [dialog: ReactNode, open: (task: Task) => void] {
  const [task, setTask] = useState<Task>();
  return [task && <Dialog key={task.title} task={task} close={() => setTask(undefined)} />, setTask];
}
