// What can be done to a thing: a menu, behind three dots in a row or behind a word at a page's head.

import { Dropdown, DropdownItem, DropdownList, MenuToggle } from '@patternfly/react-core';
import DotsIcon from '@patternfly/react-icons/dist/esm/icons/rh-ui-ellipsis-vertical-fill-icon';
import { useState } from 'react';

export interface Choice {
  word: string;
  run: () => void;
  danger?: boolean;
  disabled?: boolean;
  /** Why it cannot be done, or what it does. */
  about?: string;
}

interface Props {
  /** What it is done to, for screen readers. */
  of: string;
  /** The word on the button; without, three dots. */
  word?: string;
  choices: (Choice | false)[];
}

export function Menu({ of, word, choices }: Props) {
  const [open, setOpen] = useState(false);
  return (
    <Dropdown
      isOpen={open}
      onOpenChange={setOpen}
      onSelect={() => setOpen(false)}
      popperProps={{ position: 'end' }}
      shouldFocusToggleOnSelect
      shouldFocusFirstItemOnOpen
      toggle={(ref) => (
        <MenuToggle
          ref={ref}
          onClick={() => setOpen(!open)}
          isExpanded={open}
          aria-label={word ? `${word}: ${of}` : `Actions on ${of}`}
          {...(word ? { variant: 'secondary' as const } : { variant: 'plain' as const, icon: <DotsIcon /> })}
        >
          {word}
        </MenuToggle>
      )}
    >
      <DropdownList>
        {choices
          .filter((choice) => choice !== false)
          .map((choice) => (
            <DropdownItem
              key={choice.word}
              onClick={choice.run}
              isDanger={choice.danger ?? false}
              isDisabled={choice.disabled ?? false}
              {...(choice.about ? { description: choice.about } : {})}
            >
              {choice.word}
            </DropdownItem>
          ))}
      </DropdownList>
    </Dropdown>
  );
}
